-- +goose Up
-- What classifiers learned about hosts, a row for each of them and day (UTC, days since 1970). data is a UsualDay (protobuf).
CREATE TABLE IF NOT EXISTS usual_days (
    day        BIGINT       NOT NULL,
    node       VARCHAR(255) NOT NULL,
    updated_ns BIGINT       NOT NULL,
    data       MEDIUMBLOB   NOT NULL,
    PRIMARY KEY (day, node),
    CONSTRAINT usual_day CHECK (day > 0),
    CONSTRAINT usual_node CHECK (node <> '')
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- +goose Down
DROP TABLE IF EXISTS usual_days;
