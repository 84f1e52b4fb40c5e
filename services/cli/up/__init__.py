"""`silkrec up` and `silkrec down`: a monitored suite on one machine, in real processes and without containers.

Owns what stands around the services there: nginx in front, Prometheus and Alertmanager beside, their configuration
(made of infra/'s files, under `up/` of the state folder) and the way in and out of the background. Who starts and
restarts the processes is the supervisor (`services/cli/supervisor.py`); what they are told is infra/'s.
"""
