-- +goose Up
-- What the sensor measured of a TCP flow, NULL where it did not: the parts of the handshake's round trip in microseconds (from
-- the SYN-ACK to the ACK, from the SYN to the SYN-ACK; their sum is the round trip), and segments that were sent again.
-- MySQL has no ADD COLUMN IF NOT EXISTS, and the statement must be one that can be repeated (see version 3).
SET @change = IF(
    (SELECT count(*) FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = 'flows' AND column_name = 'rtt_client_us') = 0,
    'ALTER TABLE flows ADD COLUMN rtt_client_us BIGINT, ADD COLUMN rtt_server_us BIGINT, ADD COLUMN retransmits_fwd BIGINT, ADD COLUMN retransmits_rev BIGINT',
    'DO 0');
PREPARE change_flows FROM @change;
EXECUTE change_flows;
DEALLOCATE PREPARE change_flows;

-- +goose Down
ALTER TABLE flows DROP COLUMN rtt_client_us, DROP COLUMN rtt_server_us, DROP COLUMN retransmits_fwd, DROP COLUMN retransmits_rev;
