"""From an order to slots: diversity, promotions, exploration, in this order. The arithmetic is `ranking`'s."""
