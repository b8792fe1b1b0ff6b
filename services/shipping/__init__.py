"""Owns shipments: books them for orders, cancels them before the goods leave, dispatches them."""
