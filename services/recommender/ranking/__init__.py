"""Orders and probabilities over columns: fusing, blending, diversity, promotions, exploration. Pure numpy.

Owns the arithmetic, and that nothing is lost or doubled by it. Owns no request, deadline or source: the pipeline calls.
"""
