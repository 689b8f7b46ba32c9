-- How many rows were last proven on which day (of Unix time), by server: to
-- count them in registrations takes more than a second with a million rows,
-- and an index would have to be written to with each notification. A row is
-- never inserted proven, and never changes its server.
CREATE TABLE proven_days (
    server TEXT   NOT NULL CHECK (server <> ''),
    day    BIGINT NOT NULL,
    n      BIGINT NOT NULL CHECK (n >= 0),
    PRIMARY KEY (server, day)
) WITHOUT ROWID;
INSERT INTO proven_days (server, day, n)
SELECT server, proven_at / 86400000, count(*) FROM registrations WHERE proven_at IS NOT NULL GROUP BY 1, 2;

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
