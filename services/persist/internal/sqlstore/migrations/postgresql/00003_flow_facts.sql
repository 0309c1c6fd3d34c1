-- +goose Up
-- What the classifier read from a flow's first packets; an empty text means: nothing was seen. risks is a bit set,
-- bit n for the risk of number n.
ALTER TABLE flows ADD COLUMN ja3 text NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN ja4 text NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN hassh text NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN confidence text NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN host_source text NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN tls_version text NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN user_agent text NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN http_method text NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN dns_type text NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN dns_rcode text NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN dns_answers text NOT NULL DEFAULT '';
ALTER TABLE flows ADD COLUMN risks bigint NOT NULL DEFAULT 0;

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
