"""From a Report to what templates show. Formats and words only: no number is computed here."""
