-- Endpoints of the DoveAdm API that are set aside. One that works has no row.
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
