"""Live runs, tasks and jobs on a Ray cluster."""
