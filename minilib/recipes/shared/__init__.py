"""What the experiments of several papers share: tasks, their data, and
their baselines."""
