-- +goose Up
-- What classifiers learned about hosts, a row for each of them and day (UTC, days since 1970). data is a UsualDay (protobuf).
CREATE TABLE usual_days (
    day        INTEGER NOT NULL CHECK (day > 0),
    node       TEXT    NOT NULL CHECK (length(node) BETWEEN 1 AND 255),
    updated_ns INTEGER NOT NULL,
    data       BLOB    NOT NULL,
    PRIMARY KEY (day, node)
) STRICT, WITHOUT ROWID;

-- +goose Down
DROP TABLE usual_days;
