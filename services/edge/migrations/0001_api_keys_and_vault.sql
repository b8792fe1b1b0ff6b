-- Who may ask. Of a key only a keyed hash is kept.
CREATE TABLE api_keys (
    merchant_id text        NOT NULL,
    key_id      text        NOT NULL,
    hash        bytea       NOT NULL,
    access      text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    valid_until timestamptz,
    PRIMARY KEY (merchant_id, key_id),
    CONSTRAINT one_key_per_hash UNIQUE (merchant_id, hash),
    CONSTRAINT known_access CHECK (access IN ('full', 'read')),
    CONSTRAINT a_whole_hash CHECK (octet_length(hash) = 32)
);

-- Card numbers, each sealed with a key of its own, which is sealed with the service's key. There is no column for a CVC.
CREATE TABLE cards (
    merchant_id     text        NOT NULL,
    card_id         text        NOT NULL,
    fingerprint     text        NOT NULL,
    processor_token text        NOT NULL,
    brand           text        NOT NULL,
    bin             text        NOT NULL,
    last4           text        NOT NULL,
    exp_month       smallint    NOT NULL,
    exp_year        smallint    NOT NULL,
    sealed_number   bytea       NOT NULL,
    sealed_key      bytea       NOT NULL,
    vault_key_id    text        NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, card_id),
    CONSTRAINT one_card_per_number UNIQUE (merchant_id, fingerprint),
    CONSTRAINT only_what_may_be_shown CHECK (length(last4) = 4 AND length(bin) = 6),
    CONSTRAINT a_month CHECK (exp_month BETWEEN 1 AND 12)
);
CREATE INDEX cards_by_token ON cards (merchant_id, processor_token);
