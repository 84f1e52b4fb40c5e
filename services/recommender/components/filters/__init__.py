"""What may be shown. Owns masks over candidates; counting and explaining is the pipeline's."""
