"""A suite of runs, and one report about them: `python -m hpt_ray.tools.suite SUITE.yaml`.

    suite ──▶ matrix ──▶ runner ──▶ run folders ──▶ collect ──▶ tables, dynamics ──▶ report
               ▲ choose      │ jobs: processes here, or Ray jobs
               └─────────────┘

Nothing here trains or generates: a run is `python -m hpt_ray.main`, an evaluation is `python -m
hpt_ray.cli.evaluate`, each in a process of its own. What is done is seen in their folders alone.
"""
