"""Where candidates come from. Owns what is proposed and in which order, not how many are kept."""
