-- +goose Up
-- Times are Unix nanoseconds in a bigint: exact, the same keys in every database, and read by Grafana with
-- $__unixEpochNanoFilter(ts). flows and enforcements are partitioned by UTC day; the default partitions take
-- rows whose clock is far off, so that an insert never lacks a partition.
CREATE TABLE flows (
    ts           bigint   NOT NULL CHECK (ts > 0),
    id           text     NOT NULL CHECK (length(id) BETWEEN 1 AND 512),
    last_ns      bigint   NOT NULL,
    sensor       text     NOT NULL,
    src_ip       inet     NOT NULL,
    dst_ip       inet     NOT NULL,
    src_port     integer  NOT NULL CHECK (src_port BETWEEN 0 AND 65535),
    dst_port     integer  NOT NULL CHECK (dst_port BETWEEN 0 AND 65535),
    protocol     smallint NOT NULL CHECK (protocol BETWEEN 0 AND 255),
    vlan         smallint NOT NULL CHECK (vlan BETWEEN 0 AND 4095),
    app          text     NOT NULL,
    host         text     NOT NULL,
    alpn         text     NOT NULL,
    packets_fwd  bigint   NOT NULL,
    packets_rev  bigint   NOT NULL,
    bytes_fwd    bigint   NOT NULL,
    bytes_rev    bigint   NOT NULL,
    tcp_flags_fwd smallint NOT NULL,
    tcp_flags_rev smallint NOT NULL,
    end_reason   smallint NOT NULL,
    asn_src      bigint,
    asn_dst      bigint,
    country_src  text,
    country_dst  text,
    iface_in     bigint,
    iface_out    bigint,
    PRIMARY KEY (ts, id)
) PARTITION BY RANGE (ts);
CREATE INDEX flows_src ON flows (src_ip, ts);
CREATE INDEX flows_dst ON flows (dst_ip, ts);
CREATE TABLE flows_default PARTITION OF flows DEFAULT;

CREATE TABLE attacks (
    id          text     NOT NULL CHECK (length(id) BETWEEN 1 AND 512),
    revision    bigint   NOT NULL,
    ts          bigint   NOT NULL CHECK (ts > 0),
    type        text     NOT NULL,
    target      text     NOT NULL,
    state       text     NOT NULL,
    sensor      text     NOT NULL,
    first_ns    bigint   NOT NULL,
    detected_ns bigint   NOT NULL,
    updated_ns  bigint   NOT NULL,
    ended_ns    bigint   NOT NULL,
    packets     bigint   NOT NULL,
    bytes       bigint   NOT NULL,
    pps         double precision NOT NULL,
    bps         double precision NOT NULL,
    sources     bigint   NOT NULL,
    top_sources jsonb    NOT NULL,
    trace_id    text     NOT NULL,
    PRIMARY KEY (id, revision, ts)
);
CREATE INDEX attacks_ts ON attacks (ts);
CREATE INDEX attacks_first ON attacks (first_ns, id);

CREATE TABLE verdicts (
    ts          bigint   NOT NULL CHECK (ts > 0),
    id          text     NOT NULL CHECK (length(id) BETWEEN 1 AND 512),
    attack_id   text     NOT NULL,
    type        text     NOT NULL,
    target      text     NOT NULL,
    sensor      text     NOT NULL,
    key_kind    text     NOT NULL,
    explanation text     NOT NULL,
    rules       jsonb    NOT NULL,
    evidence    jsonb    NOT NULL,
    trace_id    text     NOT NULL,
    traceparent text     NOT NULL,
    PRIMARY KEY (ts, id)
);
CREATE INDEX verdicts_id ON verdicts (id);
CREATE INDEX verdicts_attack ON verdicts (attack_id, ts);

CREATE TABLE enforcements (
    ts            bigint  NOT NULL CHECK (ts > 0),
    id            text    NOT NULL CHECK (length(id) BETWEEN 1 AND 512),
    node          text    NOT NULL,
    rule_id       text    NOT NULL,
    attack_id     text    NOT NULL,
    state         text    NOT NULL,
    reason        text    NOT NULL,
    detail        text    NOT NULL,
    apply_ns      bigint  NOT NULL,
    first_drop_ns bigint  NOT NULL,
    time_to_first_drop_ns bigint NOT NULL,
    packets       bigint  NOT NULL,
    bytes         bigint  NOT NULL,
    shadow        boolean NOT NULL,
    action        text    NOT NULL,
    trace_id      text    NOT NULL,
    PRIMARY KEY (ts, id)
) PARTITION BY RANGE (ts);
CREATE INDEX enforcements_rule ON enforcements (rule_id, ts);
CREATE INDEX enforcements_attack ON enforcements (attack_id, ts);
CREATE TABLE enforcements_default PARTITION OF enforcements DEFAULT;

-- The highest stream sequence whose rows are committed, by stream: gaps are noticed across restarts.
CREATE TABLE stream_positions (
    stream text   NOT NULL PRIMARY KEY,
    seq    bigint NOT NULL
);

-- +goose Down
DROP TABLE stream_positions;
DROP TABLE enforcements;
DROP TABLE verdicts;
DROP TABLE attacks;
DROP TABLE flows;
