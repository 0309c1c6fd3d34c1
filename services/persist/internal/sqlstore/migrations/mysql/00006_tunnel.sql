-- +goose NO TRANSACTION
-- +goose Up
-- What the tunnel around a flow names: the network identifier of VXLAN or Geneve, or the key of GRE. NULL: none, or from a
-- sensor that does not look into tunnels.
-- MySQL has no ADD COLUMN IF NOT EXISTS, and an interrupted migration is repeated.
SET @tunnel = (SELECT IF(COUNT(*) = 0, 'ALTER TABLE flows ADD COLUMN tunnel INT UNSIGNED', 'DO 0') FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name = 'flows' AND column_name = 'tunnel');
PREPARE add_tunnel FROM @tunnel;
EXECUTE add_tunnel;
DEALLOCATE PREPARE add_tunnel;

-- +goose Down
ALTER TABLE flows DROP COLUMN tunnel;
