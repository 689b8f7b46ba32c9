-- What is due is asked for server by server: one server's backlog must not be
-- read to find another's.
DROP INDEX registrations_due;
CREATE INDEX registrations_due ON registrations (server, next_at) WHERE next_at IS NOT NULL;

-- Few registrations fail at any time, but for a server's trouble.
CREATE INDEX registrations_failing ON registrations (server, error_kind) WHERE error_kind <> '';

-- Servers that fail for everybody. A server that works has no row.
CREATE TABLE circuits (
    server   TEXT   NOT NULL PRIMARY KEY CHECK (server <> ''),
    since    BIGINT NOT NULL,
    probe_at BIGINT NOT NULL,
    failures BIGINT NOT NULL CHECK (failures > 0),
    kind     TEXT   NOT NULL,
    message  TEXT   NOT NULL
) WITHOUT ROWID;
