-- +goose Up
-- Changes that users asked for, one row a step.
CREATE TABLE audit (
    ts          INTEGER NOT NULL CHECK (ts > 0),
    id          TEXT    NOT NULL CHECK (length(id) BETWEEN 1 AND 512),
    revision    INTEGER NOT NULL,
    actor       TEXT    NOT NULL,
    role        TEXT    NOT NULL,
    remote      TEXT    NOT NULL,
    action      TEXT    NOT NULL,
    target      TEXT    NOT NULL,
    outcome     TEXT    NOT NULL,
    before_json TEXT    CHECK (before_json IS NULL OR json_valid(before_json)),
    after_json  TEXT    CHECK (after_json IS NULL OR json_valid(after_json)),
    detail      TEXT    NOT NULL,
    request_id  TEXT    NOT NULL,
    trace_id    TEXT    NOT NULL,
    gateway     TEXT    NOT NULL,
    PRIMARY KEY (ts, id, revision)
) STRICT, WITHOUT ROWID;
CREATE INDEX audit_id ON audit (id, revision, ts);

-- +goose Down
DROP TABLE audit;
