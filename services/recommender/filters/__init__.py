"""Filter expressions: `price < 50 AND category IN ("shoes", $cat) AND NOT is_adult`.

Owns the language (grammar, types, meaning) and its evaluation as a mask over catalogue columns. Does not own which
expressions apply to a request, nor the counting of what they removed: that is the pipeline's.

    expression   a OR b · a AND b · NOT a · (a); NOT binds tightest, then AND; keywords in any case
    test         field = != < <= > >= value · field [NOT] IN (value, …) · list CONTAINS value · field IS [NOT] NULL
    field        item fields (core and declared) · user.<declared field> · user.segments; a boolean is a test by itself
    value        "text" · 'text' · 12.5 · true · false · now() · a timestamp as RFC 3339 text · another field ·
                 $name (from filter_values; a list is spread inside IN)

`category` is a name for `categories`; on a list `=` and `IN` ask whether any entry equals, `!=` and `NOT IN` whether
none does. Missing values: a comparison with one is false (`!=` and `NOT IN` too); only `IS NULL` is true. NOT turns
that false into true: `NOT price < 5` keeps items without a price, `price >= 5` does not. An empty list is missing.
Missing entries of IN's own list are left out: `brand NOT IN user.blocked` keeps every branded item for a user who
blocked nothing.

Targeting of experiments is the same language about nobody's items: `user.<field>` and `context.<name>`, whose values
take the type of what they are compared with.
"""

from services.recommender.filters.compiled import CompiledFilter, compile_filter
from services.recommender.filters.targeting import Targeting, compile_segment, compile_targeting

__all__ = ["CompiledFilter", "Targeting", "compile_filter", "compile_segment", "compile_targeting"]
