CREATE TABLE products (
    merchant_id text        NOT NULL,
    sku         text        NOT NULL,
    name        text        NOT NULL,
    on_hand     bigint      NOT NULL,
    reserved    bigint      NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, sku),
    CONSTRAINT never_oversold CHECK (0 <= reserved AND reserved <= on_hand)
) WITH (fillfactor = 50);

COMMENT ON COLUMN products.on_hand IS 'pieces in the warehouse, reserved ones included';
COMMENT ON COLUMN products.reserved IS 'pieces set aside: the sum over all reservations in state RESERVED';

CREATE TABLE reservations (
    merchant_id    text        NOT NULL,
    reservation_id text        NOT NULL,
    order_id       text        NOT NULL,
    lines          jsonb       NOT NULL,
    state          text        NOT NULL DEFAULT 'RESERVED',
    created_at     timestamptz NOT NULL DEFAULT now(),
    ended_at       timestamptz,
    PRIMARY KEY (merchant_id, reservation_id),
    CONSTRAINT one_reservation_per_order UNIQUE (merchant_id, order_id),
    CONSTRAINT known_state CHECK (state IN ('RESERVED', 'RELEASED', 'COMMITTED'))
) WITH (fillfactor = 80);

COMMENT ON COLUMN reservations.lines IS 'pieces by sku, for example {"85123A": 6}';
