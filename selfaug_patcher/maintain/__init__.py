"""Tools for whoever maintains the pins, in a checkout. No other module of the patcher needs them."""
