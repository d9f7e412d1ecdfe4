"""`hpt_ray watch`: a page on this machine that shows runs while they train. Nothing is written to a run folder."""
