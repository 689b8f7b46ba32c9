-- One row per event and target: a target that wants bodies stripped never has
-- the whole one. Times are Unix milliseconds. AUTOINCREMENT, for a number that
-- came again could be settled in another's stead.
CREATE TABLE deliveries (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    target    TEXT    NOT NULL CHECK (target <> ''),
    username  TEXT    NOT NULL CHECK (username <> ''),
    event     TEXT    NOT NULL CHECK (event <> ''),
    received  BIGINT  NOT NULL,
    queued    BIGINT  NOT NULL,
    next_at   BIGINT  NOT NULL,
    attempts  BIGINT  NOT NULL,
    refusals  BIGINT  NOT NULL,
    head      BIGINT  NOT NULL CHECK (head = 0 OR head = 1),
    leased    BIGINT  NOT NULL CHECK (leased = 0 OR leased = 1),
    dead      BIGINT  NOT NULL CHECK (dead = 0 OR dead = 1),
    died      BIGINT,
    reason    TEXT    NOT NULL,
    body      BLOB    NOT NULL
);

-- Who follows when the oldest event of a user is done.
CREATE INDEX deliveries_order ON deliveries (target, username) WHERE dead = 0;

-- Only the oldest event of each user and target can be due.
CREATE INDEX deliveries_head ON deliveries (target, next_at) WHERE head = 1;

-- What a process had under way when it was killed: few rows.
CREATE INDEX deliveries_leased ON deliveries (target) WHERE leased = 1;

-- The dead, and the oldest that waits.
CREATE INDEX deliveries_state ON deliveries (target, dead);

-- Counting a million rows would take too long for a scrape and for each Add.
CREATE TABLE targets (
    name         TEXT   NOT NULL PRIMARY KEY CHECK (name <> ''),
    waiting      BIGINT NOT NULL CHECK (waiting >= 0),
    dead         BIGINT NOT NULL CHECK (dead >= 0),
    skipped      BIGINT NOT NULL,
    delivered    BIGINT NOT NULL,
    delivered_at BIGINT,
    error        TEXT   NOT NULL,
    error_at     BIGINT
) WITHOUT ROWID;

-- Hashes of keys that have come, in the order in which they came.
CREATE TABLE seen (
    n   INTEGER PRIMARY KEY,
    key BLOB    NOT NULL UNIQUE,
    at  BIGINT  NOT NULL
);
