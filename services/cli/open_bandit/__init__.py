"""`silkrec open-bandit`: the sample of Open Bandit as an experiment, and as a test of off-policy estimates."""
