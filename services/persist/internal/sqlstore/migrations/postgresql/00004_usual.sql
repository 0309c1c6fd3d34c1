-- +goose Up
-- What classifiers learned about hosts, a row for each of them and day (UTC, days since 1970). data is a UsualDay (protobuf).
CREATE TABLE usual_days (
    day        bigint NOT NULL CHECK (day > 0),
    node       text   COLLATE "C" NOT NULL CHECK (length(node) BETWEEN 1 AND 255),
    updated_ns bigint NOT NULL,
    data       bytea  NOT NULL,
    PRIMARY KEY (day, node)
);

-- +goose Down
DROP TABLE usual_days;
