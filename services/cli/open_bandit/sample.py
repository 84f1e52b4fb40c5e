"""Open Bandit's small sample: 10,000 rows of each of two policies on three campaigns, out of the wheel that carries it.

Yuta Saito, Shunsuke Aihara, Megumi Matsutani, Yusuke Narita. 2021. Open Bandit Dataset and Pipeline: Towards Realistic
and Reproducible Off-Policy Evaluation. NeurIPS Datasets and Benchmarks.
"""

from __future__ import annotations

from services.cli.package_data import PackageData
from services.recommender.experiments.open_bandit.log import Campaign, Policy

TERMS = (
    "Open Bandit Dataset is ZOZO, Inc.'s, under CC BY 4.0: free to use and pass on, also commercially, with credit. "
    "https://creativecommons.org/licenses/by/4.0/  https://research.zozo.com/data.html"
)
PACKAGE = PackageData(
    wheel="obp==0.4.1",
    sha256="87dec9caf4283c25ab13036532e0a24566f1c7bdcad1653a8ded43b2f5ef8208",
    size="1.3 MB",
    files={
        f"{policy}/{campaign}/{name}": f"obp/dataset/obd/{policy}/{campaign}/{name}"
        for policy in Policy
        for campaign in Campaign
        for name in (f"{campaign}.csv", "item_context.csv")
    },
)
