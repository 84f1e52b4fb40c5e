"""The catalogue's writing side: item content, the allocation of item_index, and whether an item can be retrieved yet.

The tables' own rules live here; `services/features/routes/items.py` only speaks HTTP. Readers that keep the catalogue
in memory follow it by revision through `services/features/reading/catalogue.py`.
"""
