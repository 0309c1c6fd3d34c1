-- +goose Up
-- What the sensor measured of a TCP flow, NULL where it did not: the parts of the handshake's round trip in microseconds (from
-- the SYN-ACK to the ACK, from the SYN to the SYN-ACK; their sum is the round trip), and segments that were sent again.
ALTER TABLE flows ADD COLUMN rtt_client_us INTEGER;
ALTER TABLE flows ADD COLUMN rtt_server_us INTEGER;
ALTER TABLE flows ADD COLUMN retransmits_fwd INTEGER;
ALTER TABLE flows ADD COLUMN retransmits_rev INTEGER;

-- +goose Down
ALTER TABLE flows DROP COLUMN retransmits_rev;
ALTER TABLE flows DROP COLUMN retransmits_fwd;
ALTER TABLE flows DROP COLUMN rtt_server_us;
ALTER TABLE flows DROP COLUMN rtt_client_us;
