-- One row per user and server. Times are Unix milliseconds, NULL for none.
-- WITHOUT ROWID keeps the rows in (username, server) order, which is the order
-- in which they are listed and compared with a list of users.
CREATE TABLE registrations (
    username      TEXT   NOT NULL CHECK (username <> ''),
    server        TEXT   NOT NULL CHECK (server <> ''),
    identity      TEXT   NOT NULL,
    value         TEXT   NOT NULL,
    wanted        TEXT   NOT NULL CHECK (wanted IN ('present', 'absent')),
    state         TEXT   NOT NULL CHECK (state IN ('pending', 'registered', 'removing', 'conflict', 'failed')),
    expires_at    BIGINT,
    attempts      BIGINT NOT NULL CHECK (attempts >= 0),
    next_at       BIGINT,
    written_at    BIGINT,
    verified_at   BIGINT,
    proven_at     BIGINT,
    error_kind    TEXT   NOT NULL,
    error_message TEXT   NOT NULL,
    force         BIGINT NOT NULL CHECK (force IN (0, 1)),
    written       TEXT   NOT NULL,
    doubt_until   BIGINT,
    revision      BIGINT NOT NULL CHECK (revision > 0),
    claimed_by    TEXT   NOT NULL,
    claimed_until BIGINT,
    PRIMARY KEY (username, server)
) WITHOUT ROWID;

CREATE INDEX registrations_due ON registrations (next_at) WHERE next_at IS NOT NULL;

-- Few rows are claimed at any time; a process that stops gives its own back.
CREATE INDEX registrations_claimed ON registrations (claimed_by) WHERE claimed_by <> '';

-- A notification names the identity. Most installations leave it empty.
CREATE INDEX registrations_identity ON registrations (identity) WHERE identity <> '';

-- Counting a million rows by state takes 0.2 s with it, 1.3 s without.
CREATE INDEX registrations_state ON registrations (server, state);
