"""Profiles of hypothesis: 'ci' tries few and always the same examples, 'long' many new ones (`make fuzz`)."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, settings

CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)  # explaining takes longer than finding
COMMON: dict[str, Any] = dict(deadline=None, suppress_health_check=CHECKS, phases=PHASES, print_blob=True)
settings.register_profile('ci', derandomize=True, max_examples=40, database=None, **COMMON)
settings.register_profile('long', max_examples=4000, **COMMON)
settings.load_profile('ci')
