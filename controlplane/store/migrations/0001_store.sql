-- +goose Up

-- The one row everything is ordered by. rev counts commits that changed a
-- resource; epoch fences a leader that lost its place; changes up to compacted
-- are gone.
CREATE TABLE zone (
    id         TEXT   NOT NULL PRIMARY KEY,
    name       TEXT   NOT NULL UNIQUE,
    rev        BIGINT NOT NULL,
    epoch      BIGINT NOT NULL,
    compacted  BIGINT NOT NULL,
    seed       BIGINT NOT NULL,
    created    BIGINT NOT NULL
);

CREATE TABLE organization (
    id         TEXT   NOT NULL PRIMARY KEY,
    name       TEXT   NOT NULL UNIQUE,
    created    BIGINT NOT NULL
);

-- The secret is sealed with the root key, never hashed: HMAC needs it.
CREATE TABLE apikey (
    access_key TEXT   NOT NULL PRIMARY KEY,
    org        TEXT   NOT NULL,
    name       TEXT   NOT NULL,
    secret     BYTEA  NOT NULL,
    created    BIGINT NOT NULL
);

-- unique_name is NULL for kinds whose names may repeat.
CREATE TABLE resource (
    kind        TEXT   NOT NULL,
    id          TEXT   NOT NULL,
    org         TEXT   NOT NULL,
    name        TEXT   NOT NULL,
    unique_name TEXT,
    state       TEXT   NOT NULL,
    generation  BIGINT NOT NULL,
    revision    BIGINT NOT NULL,
    born        BIGINT NOT NULL,
    document    TEXT   NOT NULL,
    PRIMARY KEY (kind, id),
    UNIQUE (kind, org, unique_name)
);
CREATE INDEX resource_by_name ON resource (kind, org, name);

CREATE TABLE reference (
    from_kind TEXT NOT NULL,
    from_id   TEXT NOT NULL,
    to_kind   TEXT NOT NULL,
    to_id     TEXT NOT NULL,
    PRIMARY KEY (from_kind, from_id, to_kind, to_id)
);
CREATE INDEX reference_by_target ON reference (to_kind, to_id);

CREATE TABLE change (
    revision  BIGINT   NOT NULL,
    seq       BIGINT   NOT NULL,
    kind      TEXT     NOT NULL,
    id        TEXT     NOT NULL,
    deleted   SMALLINT NOT NULL,
    operation TEXT     NOT NULL,
    org       TEXT     NOT NULL,
    PRIMARY KEY (revision, seq)
);
CREATE INDEX change_by_operation ON change (operation);

CREATE TABLE operation (
    id         TEXT   NOT NULL PRIMARY KEY,
    org        TEXT   NOT NULL,
    command    TEXT   NOT NULL,
    kind       TEXT   NOT NULL,
    subject    TEXT   NOT NULL,
    ref_kind   TEXT   NOT NULL,
    ref_id     TEXT   NOT NULL,
    state      TEXT   NOT NULL,
    reason     TEXT   NOT NULL,
    message    TEXT   NOT NULL,
    tightens   SMALLINT NOT NULL,
    generation BIGINT NOT NULL,
    revision   BIGINT NOT NULL,
    created    BIGINT NOT NULL,
    deadline   BIGINT NOT NULL,
    finished   BIGINT NOT NULL,
    detail     TEXT   NOT NULL
);
CREATE INDEX operation_by_state ON operation (state, deadline);
CREATE INDEX operation_by_subject ON operation (kind, subject, state);

CREATE TABLE task (
    id              TEXT     NOT NULL PRIMARY KEY,
    operation       TEXT     NOT NULL,
    subject         TEXT     NOT NULL,
    seq             BIGINT   NOT NULL UNIQUE,
    program         BYTEA    NOT NULL,
    progress        BYTEA    NOT NULL,
    claim           BIGINT   NOT NULL,
    lease_owner     TEXT     NOT NULL,
    lease_until     BIGINT   NOT NULL,
    not_before      BIGINT   NOT NULL,
    deadline        BIGINT   NOT NULL,
    attempts        BIGINT   NOT NULL,
    cancelled       SMALLINT NOT NULL,
    finished        SMALLINT NOT NULL,
    outcome         TEXT     NOT NULL,
    outcome_message TEXT     NOT NULL
);
CREATE INDEX task_by_due ON task (finished, not_before);
CREATE INDEX task_by_subject ON task (subject, finished);

CREATE TABLE task_event (
    task   TEXT   NOT NULL,
    seq    BIGINT NOT NULL,
    name   TEXT   NOT NULL,
    detail TEXT   NOT NULL,
    PRIMARY KEY (task, seq),
    UNIQUE (task, name)
);

-- One chain per organisation: hash covers prev and event.
CREATE TABLE audit (
    org   TEXT   NOT NULL,
    seq   BIGINT NOT NULL,
    at    BIGINT NOT NULL,
    event TEXT   NOT NULL,
    prev  TEXT   NOT NULL,
    hash  TEXT   NOT NULL,
    PRIMARY KEY (org, seq)
);

CREATE TABLE answer (
    signature TEXT   NOT NULL PRIMARY KEY,
    arrived   BIGINT NOT NULL,
    expires   BIGINT NOT NULL,
    status    BIGINT NOT NULL,
    body      BYTEA  NOT NULL
);
CREATE INDEX answer_by_expiry ON answer (expires);

-- freed_at is 0 while the owner holds the number. A freed row keeps its owner,
-- who alone may have the number back before its rest is over.
CREATE TABLE allocation (
    kind     TEXT   NOT NULL,
    number   BIGINT NOT NULL,
    owner    TEXT   NOT NULL,
    freed_at BIGINT NOT NULL,
    PRIMARY KEY (kind, number),
    UNIQUE (kind, owner)
);

CREATE TABLE pool (
    kind   TEXT   NOT NULL,
    prefix TEXT   NOT NULL,
    seq    BIGINT NOT NULL,
    PRIMARY KEY (kind, prefix)
);

-- address is fixed-width hexadecimal, so that text order is address order.
CREATE TABLE address (
    kind     TEXT   NOT NULL,
    address  TEXT   NOT NULL,
    prefix   TEXT   NOT NULL,
    owner    TEXT   NOT NULL,
    freed_at BIGINT NOT NULL,
    PRIMARY KEY (kind, address),
    UNIQUE (kind, owner)
);
CREATE INDEX address_by_prefix ON address (kind, prefix, address);

CREATE TABLE intent (
    operation TEXT   NOT NULL,
    class     TEXT   NOT NULL,
    count     BIGINT NOT NULL,
    PRIMARY KEY (operation, class)
);

CREATE TABLE slots (
    service    TEXT   NOT NULL PRIMARY KEY,
    generation BIGINT NOT NULL,
    phase      BIGINT NOT NULL,
    cells      BYTEA  NOT NULL
);

CREATE TABLE token (
    hash    TEXT   NOT NULL PRIMARY KEY,
    name    TEXT   NOT NULL,
    expires BIGINT NOT NULL,
    spent   BIGINT
);

CREATE TABLE certificate (
    serial    TEXT   NOT NULL PRIMARY KEY,
    name      TEXT   NOT NULL,
    not_after BIGINT NOT NULL,
    revoked   BIGINT
);
CREATE INDEX certificate_by_name ON certificate (name);

-- +goose Down
DROP TABLE certificate;
DROP TABLE token;
DROP TABLE slots;
DROP TABLE intent;
DROP TABLE address;
DROP TABLE pool;
DROP TABLE allocation;
DROP TABLE answer;
DROP TABLE audit;
DROP TABLE task_event;
DROP TABLE task;
DROP TABLE operation;
DROP TABLE change;
DROP TABLE reference;
DROP TABLE resource;
DROP TABLE apikey;
DROP TABLE organization;
DROP TABLE zone;
