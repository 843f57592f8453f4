# What every run has, whatever it trains: these hooks and pictures. A config takes them with
# `default_hooks, visualizer = _base_.run_hooks, _base_.run_visualizer`, also beside a host's whole recipe, which would not let
# a second base have `default_hooks`.
run_hooks = dict(
    teacher_update=dict(type='mkd_plugin.TeacherUpdateHook'),  # momentum teachers, stages; idle where there are none
    checkpoint=dict(type='mkd_plugin.AtomicCheckpointHook'),
    portable=dict(type='mkd_plugin.PortableCheckpointHook'),
    exact_resume=dict(type='mkd_plugin.ExactResumeHook'),
    finite_loss=dict(type='mkd_plugin.FiniteLossHook'),
    unused_parameters=dict(type='mkd_plugin.UnusedParametersHook'),  # every parameter has a gradient
    preemption=dict(type='mkd_plugin.PreemptionHook'),  # SIGTERM, SIGUSR1: save, exit with 85
    metrics=dict(type='mkd_plugin.MetricsHook'),  # metrics.jsonl
    curves=dict(type='mkd_plugin.CurvesHook'),  # curves.png
    progress=dict(type='mkd_plugin.ProgressHook'),  # a bar, on a terminal
)
run_visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
