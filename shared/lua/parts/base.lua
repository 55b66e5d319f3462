-- Time, keys, numbers: what every script stands on.
local P, G = ARGV[1], KEYS[1]
local call = redis.call
local TIME = call('TIME')
local now = tonumber(TIME[1]) * 1000 + math.floor(tonumber(TIME[2]) / 1000)

-- Skip reasons and doubts that scripts give themselves (`shared.models.Reason`).
local EXPIRED, CANCELLED, CRASH = 2, 4, 5
-- How far ahead of now a bucket may be when its sender still gets a turn.
local AHEAD_MS = 500

local function int(n) return string.format('%.0f', n) end
local function num(x) return tonumber(x or '') or 0 end
local function job_key(id) return P .. 'job:' .. id end
local function sender_key(id) return P .. 'sender:' .. id end

local function u16(n) return string.char(math.floor(n / 256), n % 256) end
local function u32(n)
  return string.char(math.floor(n / 16777216) % 256, math.floor(n / 65536) % 256,
                     math.floor(n / 256) % 256, n % 256)
end

-- A timer moves only earlier: a later wish must not push an earlier one away (pitfalls L11).
local function wake_at(member, at) call('ZADD', P .. 'timers', 'LT', int(at), member) end
