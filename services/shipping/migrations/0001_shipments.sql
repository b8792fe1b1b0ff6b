CREATE TABLE shipments (
    merchant_id     text        NOT NULL,
    shipment_id     text        NOT NULL,
    order_id        text        NOT NULL,
    address         json        NOT NULL,
    state           text        NOT NULL DEFAULT 'CREATED',
    tracking_number text        NOT NULL,
    created_at      timestamptz NOT NULL,
    ended_at        timestamptz,
    PRIMARY KEY (merchant_id, shipment_id),
    CONSTRAINT one_shipment_per_order UNIQUE (merchant_id, order_id),
    CONSTRAINT known_state CHECK (state IN ('CREATED', 'CANCELLED', 'DISPATCHED')),
    CONSTRAINT ended_when_final CHECK ((ended_at IS NULL) = (state = 'CREATED'))
) WITH (fillfactor = 80);

COMMENT ON COLUMN shipments.address IS
    'for example {"name": "A. Buyer", "street_lines": ["1 High Street"], "city": "York", "postal_code": "YO1 7HH", "country": "GB"}';
COMMENT ON COLUMN shipments.ended_at IS 'when it was cancelled or dispatched';
