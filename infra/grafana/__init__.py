"""Dashboards as code: `boards` says what is asked, `panels` how Grafana wants it, `generate` writes JSON.

Does not own what is measured (each service's metrics.py) nor what wakes somebody (infra/prometheus/rules).
"""
