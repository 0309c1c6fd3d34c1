-- +goose Up
-- What the tunnel around a flow names: the network identifier of VXLAN or Geneve, or the key of GRE. NULL: none, or from a
-- sensor that does not look into tunnels.
ALTER TABLE flows ADD COLUMN tunnel bigint CHECK (tunnel BETWEEN 1 AND 4294967295);

-- +goose Down
ALTER TABLE flows DROP COLUMN tunnel;
