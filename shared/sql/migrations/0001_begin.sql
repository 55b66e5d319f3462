-- The first tables: who may ask, who sends, jobs, what each recipient came to, what was done.
-- migrate:up
CREATE TABLE users (
  id uuid PRIMARY KEY,
  email text NOT NULL UNIQUE,
  password_hash text NOT NULL,
  role text NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'admin')),
  is_disabled boolean NOT NULL DEFAULT false,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
  id text PRIMARY KEY,
  user_id uuid NOT NULL REFERENCES users (id),
  name text NOT NULL,
  sha256 bytea NOT NULL,
  scopes text[] NOT NULL,
  last4 text NOT NULL,
  expires_at timestamptz,
  revoked_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE senders (
  id text PRIMARY KEY,
  name text NOT NULL UNIQUE,
  phone_number_id text NOT NULL,
  number text NOT NULL DEFAULT '',
  token_sealed bytea NOT NULL,
  waba_id text,
  graph_api_version text,
  rate double precision,
  burst double precision,
  shard integer NOT NULL DEFAULT 0,
  state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'blocked')),
  why text NOT NULL DEFAULT '',
  until_ms bigint NOT NULL DEFAULT 0,
  is_default boolean NOT NULL DEFAULT false,
  version bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX senders_one_default ON senders (is_default) WHERE is_default;

CREATE TABLE bulk_jobs (
  number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  id text NOT NULL UNIQUE,
  owner uuid NOT NULL REFERENCES users (id),
  campaign_id text,
  name text,
  state text NOT NULL DEFAULT 'accepted',
  version bigint NOT NULL DEFAULT 0,
  by_whom text NOT NULL DEFAULT '',
  reason text NOT NULL DEFAULT '',
  kind text NOT NULL,
  template_name text,
  template_language text,
  sender_id text NOT NULL,
  sender_name text NOT NULL,
  message bytea NOT NULL,
  vars text[] NOT NULL,
  chunk_size integer NOT NULL,
  recipients integer NOT NULL,
  blob bytea NOT NULL,
  intake bytea NOT NULL,
  rate double precision NOT NULL,
  weight integer NOT NULL,
  priority text NOT NULL,
  scheduled_ms bigint NOT NULL,
  expires_ms bigint NOT NULL,
  on_unknown text NOT NULL,
  reserved integer NOT NULL,
  step integer NOT NULL,
  born text NOT NULL,
  idempotency_key text,
  idempotency_route text,
  request_hash bytea,
  response bytea,
  created_ms bigint NOT NULL,
  started_ms bigint NOT NULL DEFAULT 0,
  finished_ms bigint NOT NULL DEFAULT 0,
  parent text,
  is_sandbox boolean NOT NULL DEFAULT false,
  sent integer NOT NULL DEFAULT 0,
  failed integer NOT NULL DEFAULT 0,
  skipped integer NOT NULL DEFAULT 0,
  unknown integer NOT NULL DEFAULT 0,
  cancelled integer NOT NULL DEFAULT 0,
  delivered integer NOT NULL DEFAULT 0,
  read integer NOT NULL DEFAULT 0,
  undelivered integer NOT NULL DEFAULT 0,
  end_event text
);
CREATE UNIQUE INDEX bulk_jobs_idempotency ON bulk_jobs (owner, idempotency_route, idempotency_key)
  WHERE idempotency_key IS NOT NULL;
CREATE INDEX bulk_jobs_owner ON bulk_jobs (owner, number DESC);
CREATE INDEX bulk_jobs_open ON bulk_jobs (number) WHERE state NOT IN ('completed', 'cancelled');

-- One row per job number and position; it grows, so nothing in it needs a join and its key leaves
-- room for partitions by range of job number.
CREATE TABLE campaign_logs (
  job_number bigint NOT NULL,
  position integer NOT NULL,
  job_id text NOT NULL,
  phone bigint NOT NULL,
  outcome text NOT NULL,
  rank smallint NOT NULL,
  reason integer NOT NULL,
  attempts smallint NOT NULL,
  wamid text,
  code integer,
  error text,
  trace text,
  message_status text,
  at timestamptz NOT NULL,
  owner uuid NOT NULL,
  campaign_id text,
  kind text NOT NULL,
  template_name text,
  template_language text,
  sender text NOT NULL,
  receipt smallint NOT NULL DEFAULT 0,
  receipt_at timestamptz,
  PRIMARY KEY (job_number, position)
);
CREATE INDEX campaign_logs_wamid ON campaign_logs (wamid) WHERE wamid IS NOT NULL;
CREATE INDEX campaign_logs_phone ON campaign_logs (phone, at);
CREATE INDEX campaign_logs_at ON campaign_logs (at);

CREATE TABLE audit_log (
  number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL DEFAULT now(),
  actor text NOT NULL,
  action text NOT NULL,
  object text NOT NULL,
  result text NOT NULL,
  reason text NOT NULL DEFAULT '',
  request_id text NOT NULL DEFAULT '',
  address text NOT NULL DEFAULT ''
);
CREATE INDEX audit_log_object ON audit_log (object, number);

-- migrate:down
