"""What people look at: tables, and the view of a grid while it trains."""
