-- +goose Up
-- Rows lie in the order of time (WITHOUT ROWID): inserts append, retention frees whole pages at the front.
-- Addresses are 16-byte blobs, IPv4 as IPv4-mapped IPv6: they compare byte by byte in the order of addresses,
-- so that a prefix is one range of an index. Times are Unix nanoseconds.
CREATE TABLE flows (
    ts           INTEGER NOT NULL CHECK (ts > 0),
    id           TEXT    NOT NULL CHECK (length(id) BETWEEN 1 AND 512),
    last_ns      INTEGER NOT NULL,
    sensor       TEXT    NOT NULL,
    src_ip       BLOB    NOT NULL CHECK (length(src_ip) = 16),
    dst_ip       BLOB    NOT NULL CHECK (length(dst_ip) = 16),
    src_port     INTEGER NOT NULL CHECK (src_port BETWEEN 0 AND 65535),
    dst_port     INTEGER NOT NULL CHECK (dst_port BETWEEN 0 AND 65535),
    protocol     INTEGER NOT NULL CHECK (protocol BETWEEN 0 AND 255),
    vlan         INTEGER NOT NULL CHECK (vlan BETWEEN 0 AND 4095),
    app          TEXT    NOT NULL,
    host         TEXT    NOT NULL,
    alpn         TEXT    NOT NULL,
    packets_fwd  INTEGER NOT NULL,
    packets_rev  INTEGER NOT NULL,
    bytes_fwd    INTEGER NOT NULL,
    bytes_rev    INTEGER NOT NULL,
    tcp_flags_fwd INTEGER NOT NULL,
    tcp_flags_rev INTEGER NOT NULL,
    end_reason   INTEGER NOT NULL,
    asn_src      INTEGER,
    asn_dst      INTEGER,
    country_src  TEXT,
    country_dst  TEXT,
    iface_in     INTEGER,
    iface_out    INTEGER,
    PRIMARY KEY (ts, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX flows_src ON flows (src_ip, ts);
CREATE INDEX flows_dst ON flows (dst_ip, ts);

CREATE TABLE attacks (
    id          TEXT    NOT NULL CHECK (length(id) BETWEEN 1 AND 512),
    revision    INTEGER NOT NULL,
    ts          INTEGER NOT NULL CHECK (ts > 0),
    type        TEXT    NOT NULL,
    target      TEXT    NOT NULL,
    state       TEXT    NOT NULL,
    sensor      TEXT    NOT NULL,
    first_ns    INTEGER NOT NULL,
    detected_ns INTEGER NOT NULL,
    updated_ns  INTEGER NOT NULL,
    ended_ns    INTEGER NOT NULL,
    packets     INTEGER NOT NULL,
    bytes       INTEGER NOT NULL,
    pps         REAL    NOT NULL,
    bps         REAL    NOT NULL,
    sources     INTEGER NOT NULL,
    top_sources TEXT    NOT NULL CHECK (json_valid(top_sources)),
    trace_id    TEXT    NOT NULL,
    PRIMARY KEY (id, revision, ts)
) STRICT, WITHOUT ROWID;
CREATE INDEX attacks_ts ON attacks (ts);
CREATE INDEX attacks_first ON attacks (first_ns, id);

CREATE TABLE verdicts (
    ts          INTEGER NOT NULL CHECK (ts > 0),
    id          TEXT    NOT NULL CHECK (length(id) BETWEEN 1 AND 512),
    attack_id   TEXT    NOT NULL,
    type        TEXT    NOT NULL,
    target      TEXT    NOT NULL,
    sensor      TEXT    NOT NULL,
    key_kind    TEXT    NOT NULL,
    explanation TEXT    NOT NULL,
    rules       TEXT    NOT NULL CHECK (json_valid(rules)),
    evidence    TEXT    NOT NULL CHECK (json_valid(evidence)),
    trace_id    TEXT    NOT NULL,
    traceparent TEXT    NOT NULL,
    PRIMARY KEY (ts, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX verdicts_id ON verdicts (id);
CREATE INDEX verdicts_attack ON verdicts (attack_id, ts);

CREATE TABLE enforcements (
    ts            INTEGER NOT NULL CHECK (ts > 0),
    id            TEXT    NOT NULL CHECK (length(id) BETWEEN 1 AND 512),
    node          TEXT    NOT NULL,
    rule_id       TEXT    NOT NULL,
    attack_id     TEXT    NOT NULL,
    state         TEXT    NOT NULL,
    reason        TEXT    NOT NULL,
    detail        TEXT    NOT NULL,
    apply_ns      INTEGER NOT NULL,
    first_drop_ns INTEGER NOT NULL,
    time_to_first_drop_ns INTEGER NOT NULL,
    packets       INTEGER NOT NULL,
    bytes         INTEGER NOT NULL,
    shadow        INTEGER NOT NULL CHECK (shadow IN (0, 1)),
    action        TEXT    NOT NULL,
    trace_id      TEXT    NOT NULL,
    PRIMARY KEY (ts, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX enforcements_rule ON enforcements (rule_id, ts);
CREATE INDEX enforcements_attack ON enforcements (attack_id, ts);

-- The highest stream sequence whose rows are committed, by stream: gaps are noticed across restarts.
CREATE TABLE stream_positions (
    stream TEXT    NOT NULL PRIMARY KEY,
    seq    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- +goose Down
DROP TABLE stream_positions;
DROP TABLE enforcements;
DROP TABLE verdicts;
DROP TABLE attacks;
DROP TABLE flows;
