-- +goose NO TRANSACTION
-- +goose Up
-- For MySQL, MariaDB and Galera. Version 3 is the first here, so that a version is the same schema in every database.
-- DDL commits by itself, and a migration can be interrupted between statements: each of them can be repeated.
-- Addresses are 16 bytes, IPv4 as IPv4-mapped IPv6, and compare in the order of addresses. Times are Unix
-- nanoseconds. Partitions by UTC day are cut off p_rest ahead of time.
CREATE TABLE IF NOT EXISTS flows (
    ts           BIGINT       NOT NULL,
    id           VARCHAR(512) NOT NULL,
    last_ns      BIGINT       NOT NULL,
    sensor       VARCHAR(255) NOT NULL,
    src_ip       BINARY(16)   NOT NULL,
    dst_ip       BINARY(16)   NOT NULL,
    src_port     SMALLINT UNSIGNED NOT NULL,
    dst_port     SMALLINT UNSIGNED NOT NULL,
    protocol     TINYINT UNSIGNED NOT NULL,
    vlan         SMALLINT UNSIGNED NOT NULL,
    app          VARCHAR(255) NOT NULL,
    host         VARCHAR(1024) NOT NULL,
    alpn         VARCHAR(255) NOT NULL,
    packets_fwd  BIGINT       NOT NULL,
    packets_rev  BIGINT       NOT NULL,
    bytes_fwd    BIGINT       NOT NULL,
    bytes_rev    BIGINT       NOT NULL,
    tcp_flags_fwd SMALLINT    NOT NULL,
    tcp_flags_rev SMALLINT    NOT NULL,
    end_reason   SMALLINT     NOT NULL,
    asn_src      BIGINT,
    asn_dst      BIGINT,
    country_src  VARCHAR(64),
    country_dst  VARCHAR(64),
    iface_in     BIGINT,
    iface_out    BIGINT,
    ja3          VARCHAR(64)  NOT NULL DEFAULT '',
    ja4          VARCHAR(64)  NOT NULL DEFAULT '',
    hassh        VARCHAR(64)  NOT NULL DEFAULT '',
    confidence   VARCHAR(64)  NOT NULL DEFAULT '',
    host_source  VARCHAR(64)  NOT NULL DEFAULT '',
    tls_version  VARCHAR(64)  NOT NULL DEFAULT '',
    user_agent   VARCHAR(1024) NOT NULL DEFAULT '',
    http_method  VARCHAR(64)  NOT NULL DEFAULT '',
    dns_type     VARCHAR(64)  NOT NULL DEFAULT '',
    dns_rcode    VARCHAR(64)  NOT NULL DEFAULT '',
    dns_answers  VARCHAR(2048) NOT NULL DEFAULT '',
    risks        BIGINT       NOT NULL DEFAULT 0,
    PRIMARY KEY (ts, id),
    KEY flows_src (src_ip, ts),
    KEY flows_dst (dst_ip, ts),
    CONSTRAINT flows_ts CHECK (ts > 0),
    CONSTRAINT flows_id CHECK (id <> ''),
    CONSTRAINT flows_vlan CHECK (vlan <= 4095)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin
PARTITION BY RANGE (ts) (PARTITION p_rest VALUES LESS THAN MAXVALUE);

CREATE TABLE IF NOT EXISTS attacks (
    id          VARCHAR(512) NOT NULL,
    revision    BIGINT       NOT NULL,
    ts          BIGINT       NOT NULL,
    type        VARCHAR(255) NOT NULL,
    target      VARCHAR(512) NOT NULL,
    state       VARCHAR(64)  NOT NULL,
    sensor      VARCHAR(255) NOT NULL,
    first_ns    BIGINT       NOT NULL,
    detected_ns BIGINT       NOT NULL,
    updated_ns  BIGINT       NOT NULL,
    ended_ns    BIGINT       NOT NULL,
    packets     BIGINT       NOT NULL,
    bytes       BIGINT       NOT NULL,
    pps         DOUBLE       NOT NULL,
    bps         DOUBLE       NOT NULL,
    sources     BIGINT       NOT NULL,
    top_sources MEDIUMTEXT   NOT NULL,
    trace_id    VARCHAR(255) NOT NULL,
    PRIMARY KEY (id, revision, ts),
    KEY attacks_ts (ts),
    KEY attacks_first (first_ns, id),
    CONSTRAINT attacks_ts_positive CHECK (ts > 0),
    CONSTRAINT attacks_id CHECK (id <> ''),
    CONSTRAINT attacks_top_sources CHECK (json_valid(top_sources))
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE IF NOT EXISTS verdicts (
    ts          BIGINT       NOT NULL,
    id          VARCHAR(512) NOT NULL,
    attack_id   VARCHAR(512) NOT NULL,
    type        VARCHAR(255) NOT NULL,
    target      VARCHAR(512) NOT NULL,
    sensor      VARCHAR(255) NOT NULL,
    key_kind    VARCHAR(255) NOT NULL,
    explanation MEDIUMTEXT   NOT NULL,
    rules       MEDIUMTEXT   NOT NULL,
    evidence    MEDIUMTEXT   NOT NULL,
    trace_id    VARCHAR(255) NOT NULL,
    traceparent VARCHAR(255) NOT NULL,
    PRIMARY KEY (ts, id),
    KEY verdicts_id (id),
    KEY verdicts_attack (attack_id, ts),
    CONSTRAINT verdicts_ts CHECK (ts > 0),
    CONSTRAINT verdicts_id_set CHECK (id <> ''),
    CONSTRAINT verdicts_rules CHECK (json_valid(rules)),
    CONSTRAINT verdicts_evidence CHECK (json_valid(evidence))
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE IF NOT EXISTS enforcements (
    ts            BIGINT       NOT NULL,
    id            VARCHAR(512) NOT NULL,
    node          VARCHAR(255) NOT NULL,
    rule_id       VARCHAR(512) NOT NULL,
    attack_id     VARCHAR(512) NOT NULL,
    state         VARCHAR(64)  NOT NULL,
    reason        VARCHAR(1024) NOT NULL,
    detail        MEDIUMTEXT   NOT NULL,
    apply_ns      BIGINT       NOT NULL,
    first_drop_ns BIGINT       NOT NULL,
    time_to_first_drop_ns BIGINT NOT NULL,
    packets       BIGINT       NOT NULL,
    bytes         BIGINT       NOT NULL,
    shadow        BOOLEAN      NOT NULL,
    action        VARCHAR(255) NOT NULL,
    trace_id      VARCHAR(255) NOT NULL,
    PRIMARY KEY (ts, id),
    KEY enforcements_rule (rule_id, ts),
    KEY enforcements_attack (attack_id, ts),
    CONSTRAINT enforcements_ts CHECK (ts > 0),
    CONSTRAINT enforcements_id CHECK (id <> '')
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin
PARTITION BY RANGE (ts) (PARTITION p_rest VALUES LESS THAN MAXVALUE);

-- The highest stream sequence whose rows are committed, by stream: gaps are noticed across restarts.
CREATE TABLE IF NOT EXISTS stream_positions (
    stream VARCHAR(255) NOT NULL PRIMARY KEY,
    seq    BIGINT       NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- Changes that users asked for, one row a step. The objects keep their text as it was written.
CREATE TABLE IF NOT EXISTS audit (
    ts          BIGINT       NOT NULL,
    id          VARCHAR(512) NOT NULL,
    revision    BIGINT       NOT NULL,
    actor       VARCHAR(512) NOT NULL,
    role        VARCHAR(255) NOT NULL,
    remote      VARCHAR(512) NOT NULL,
    action      VARCHAR(255) NOT NULL,
    target      VARCHAR(1024) NOT NULL,
    outcome     VARCHAR(64)  NOT NULL,
    before_json MEDIUMTEXT,
    after_json  MEDIUMTEXT,
    detail      MEDIUMTEXT   NOT NULL,
    request_id  VARCHAR(255) NOT NULL,
    trace_id    VARCHAR(255) NOT NULL,
    gateway     VARCHAR(255) NOT NULL,
    PRIMARY KEY (ts, id, revision),
    KEY audit_id (id, revision, ts),
    CONSTRAINT audit_ts CHECK (ts > 0),
    CONSTRAINT audit_id_set CHECK (id <> ''),
    CONSTRAINT audit_before CHECK (json_valid(before_json)),
    CONSTRAINT audit_after CHECK (json_valid(after_json))
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- +goose Down
DROP TABLE IF EXISTS audit;
DROP TABLE IF EXISTS stream_positions;
DROP TABLE IF EXISTS enforcements;
DROP TABLE IF EXISTS verdicts;
DROP TABLE IF EXISTS attacks;
DROP TABLE IF EXISTS flows;
