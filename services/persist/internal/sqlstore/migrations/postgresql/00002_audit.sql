-- +goose Up
-- Changes that users asked for, one row a step.
-- The objects are json, not jsonb: an audit keeps the text as it was written.
CREATE TABLE audit (
    ts          bigint  NOT NULL CHECK (ts > 0),
    id          text    NOT NULL CHECK (length(id) BETWEEN 1 AND 512),
    revision    bigint  NOT NULL,
    actor       text    NOT NULL,
    role        text    NOT NULL,
    remote      text    NOT NULL,
    action      text    NOT NULL,
    target      text    NOT NULL,
    outcome     text    NOT NULL,
    before_json json,
    after_json  json,
    detail      text    NOT NULL,
    request_id  text    NOT NULL,
    trace_id    text    NOT NULL,
    gateway     text    NOT NULL,
    PRIMARY KEY (ts, id, revision)
);
CREATE INDEX audit_id ON audit (id, revision, ts);

-- +goose Down
DROP TABLE audit;
