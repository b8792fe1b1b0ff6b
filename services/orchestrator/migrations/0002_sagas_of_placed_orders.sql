-- An order's later sagas: dispatch, cancel, return. Orders that are only placed are not in it.
CREATE INDEX sagas_of_placed_orders ON sagas (merchant_id, order_id) WHERE kind <> 'place';
