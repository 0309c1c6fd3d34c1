-- +goose Up
-- What the classifier read from a flow's first packets; an empty text means: nothing was seen. risks is a bit set,
-- bit n for the risk of number n.
ALTER TABLE flows ADD COLUMN ja3 TEXT NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN ja4 TEXT NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN hassh TEXT NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN confidence TEXT NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN host_source TEXT NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN tls_version TEXT NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN user_agent TEXT NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN http_method TEXT NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN dns_type TEXT NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN dns_rcode TEXT NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN dns_answers TEXT NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN risks INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE flows DROP COLUMN risks;
ALTER TABLE flows DROP COLUMN dns_answers;
ALTER TABLE flows DROP COLUMN dns_rcode;
ALTER TABLE flows DROP COLUMN dns_type;
ALTER TABLE flows DROP COLUMN http_method;
ALTER TABLE flows DROP COLUMN user_agent;
ALTER TABLE flows DROP COLUMN tls_version;
ALTER TABLE flows DROP COLUMN host_source;
ALTER TABLE flows DROP COLUMN confidence;
ALTER TABLE flows DROP COLUMN hassh;
ALTER TABLE flows DROP COLUMN ja4;
ALTER TABLE flows DROP COLUMN ja3;
