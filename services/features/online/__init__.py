"""What Redis holds of a user: packed history and profile, the lease that says they may be trusted, and who keeps it so.

Every key has a TTL and can be lost: MySQL is the truth. Nothing here decides what is written to MySQL.
"""
