CREATE TABLE circuits (
    server   TEXT   NOT NULL PRIMARY KEY CHECK (server <> ''),
    since    BIGINT NOT NULL,
    probe_at BIGINT NOT NULL,
    failures BIGINT NOT NULL CHECK (failures > 0),
    kind     TEXT   NOT NULL,
    message  TEXT   NOT NULL
) WITHOUT ROWID;
CREATE TABLE endpoints (
    server   TEXT   NOT NULL CHECK (server <> ''),
    url      TEXT   NOT NULL CHECK (url <> ''),
    since    BIGINT NOT NULL,
    check_at BIGINT NOT NULL,
    reason   TEXT   NOT NULL CHECK (reason <> ''),
    kind     TEXT   NOT NULL,
    message  TEXT   NOT NULL,
    PRIMARY KEY (server, url)
) WITHOUT ROWID;
CREATE TABLE proven_days (
    server TEXT   NOT NULL CHECK (server <> ''),
    day    BIGINT NOT NULL,
    n      BIGINT NOT NULL CHECK (n >= 0),
    PRIMARY KEY (server, day)
) WITHOUT ROWID;
CREATE TABLE "registrations" (
    username      TEXT   NOT NULL CHECK (username <> ''),
    server        TEXT   NOT NULL CHECK (server <> ''),
    identity      TEXT   NOT NULL,
    value         TEXT   NOT NULL,
    wanted        TEXT   NOT NULL CHECK (wanted IN ('present', 'absent')),
    state         TEXT   NOT NULL CHECK (state IN ('pending', 'registered') OR state IN ('removing', 'conflict') OR state = 'failed'),
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
CREATE TRIGGER registrations_proven AFTER UPDATE OF proven_at ON registrations
WHEN old.proven_at IS NULL OR old.proven_at / 86400000 <> new.proven_at / 86400000
BEGIN
    INSERT INTO proven_days (server, day, n) VALUES (new.server, new.proven_at / 86400000, 1)
        ON CONFLICT (server, day) DO UPDATE SET n = n + 1;
    UPDATE proven_days SET n = n - 1 WHERE server = old.server AND day = old.proven_at / 86400000;
    DELETE FROM proven_days WHERE server = old.server AND day = old.proven_at / 86400000 AND n = 0;
END;
CREATE TRIGGER registrations_proven_gone AFTER DELETE ON registrations WHEN old.proven_at IS NOT NULL
BEGIN
    UPDATE proven_days SET n = n - 1 WHERE server = old.server AND day = old.proven_at / 86400000;
    DELETE FROM proven_days WHERE server = old.server AND day = old.proven_at / 86400000 AND n = 0;
END;
CREATE INDEX registrations_claimed ON registrations (claimed_by) WHERE claimed_by <> '';
CREATE INDEX registrations_due ON registrations (server, (state = 'failed'), next_at, username, state);
CREATE INDEX registrations_failing ON registrations (server, error_kind) WHERE error_kind <> '';
CREATE INDEX registrations_identity ON registrations (identity) WHERE identity <> username AND identity <> '';
CREATE INDEX registrations_state ON registrations (server, state) WHERE state <> 'registered';
