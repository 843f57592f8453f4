# Hooks and visualizer of every run. Use them in a config with `default_hooks, visualizer = _base_.run_hooks,
# _base_.run_visualizer`. This also works in addition to a complete recipe of a host, where a second base must not
# define `default_hooks`.
run_hooks = dict(
    runtime_info=dict(type='mkd_plugin.LazyScalarsHook'),  # mmengine's, without a wait for the device in every step
    teacher_update=dict(type='mkd_plugin.TeacherUpdateHook'),  # momentum teachers and stages; does nothing without them
    checkpoint=dict(type='mkd_plugin.AtomicCheckpointHook'),
    portable=dict(type='mkd_plugin.PortableCheckpointHook'),
    exact_resume=dict(type='mkd_plugin.ExactResumeHook'),
    finite_loss=dict(type='mkd_plugin.FiniteLossHook'),
    unused_parameters=dict(type='mkd_plugin.UnusedParametersHook'),  # checks that every parameter has a gradient
    preemption=dict(type='mkd_plugin.PreemptionHook'),  # on SIGTERM or SIGUSR1: save a checkpoint and exit with 85
    metrics=dict(type='mkd_plugin.MetricsHook'),  # metrics.jsonl
    curves=dict(type='mkd_plugin.CurvesHook'),  # curves.png
    progress=dict(type='mkd_plugin.ProgressHook'),  # progress bar on a terminal
)
run_visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
