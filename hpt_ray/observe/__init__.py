"""What a person sees: the run folder, metric names, progress, trackers, rollout dumps and the trace."""
