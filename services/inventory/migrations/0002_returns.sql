-- What came back of committed reservations. Never changed: a return cannot be undone.
CREATE TABLE returns (
    merchant_id    text        NOT NULL,
    return_id      text        NOT NULL,
    reservation_id text        NOT NULL,
    order_id       text        NOT NULL,
    lines          jsonb       NOT NULL,
    created_at     timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, return_id)
);

COMMENT ON COLUMN returns.lines IS 'pieces by sku, for example {"85123A": 2}';

CREATE INDEX returns_of_reservations ON returns (merchant_id, reservation_id);
