"""`silkrec simulate`: traffic of simulated users through the real API. The model of their clicks is
`services.recommender.experiments.simulator`; here are the requests, the progress bar and the report."""
