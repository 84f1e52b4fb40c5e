"""Open Bandit's logs: two policies on one fashion shop, read, told as an experiment of two arms, and evaluated.

    log         the CSV files as columns
    policies    what the bts policy does, by how often it did it
    evaluation  BTS from the random policy's log (IPS, SNIPS, DR), beside what BTS really earned
    arms        the rows that the logs are in our tables

Source: Saito, Aihara, Matsutani, Narita 2021 (NeurIPS Datasets and Benchmarks), "Open Bandit Dataset and Pipeline"; the
sample of 10,000 rows a policy and campaign that the package `obp` carries. CC BY 4.0. Pure: files in, numbers out; the
command line downloads and writes to the database.
"""
