--- Take what a worker knows in the middle of a claim: facts, and the intents of what leaves next.
-- Needs    told
--
-- KEYS[1]  P gate    declares the shard's slot
-- ARGV[1]  P         ARGV[2]  worker      ARGV[3]  entry      ARGV[4]  job      ARGV[5]  chunk
-- ARGV[6]  facts     9 bytes each: u16 index, u8 state, u8 attempt, u16 reason, u24 due_s
-- ARGV[7]  record    opaque details for the archive
-- ARGV[8]  throttled '' or for how long Graph asked to wait, ms
-- ARGV[9]  intents   4 bytes each: u16 index, u8 attempt, u8 in_place
-- Reads    P ready, P job:<id>
-- Writes   P job:<id>, P job:<id>:states, P sender:<id>, P sender:<id>:jobs, P outcomes, P events,
--          P changed, P minute:<n>, P timers, P low
-- Returns  {owner, job state | gone | expired, bytes changed, 1: the sender's rate was cut}
-- Repeat   finds no difference: no change but times
-- Cost     O(facts + intents + recipients of the chunk)
if not state then return tell_gone() end
apply_facts()
local paid_later = 0
if owner and running then
  local intents = ARGV[9]
  for i = 1, #intents, 4 do
    local a, b, attempt, in_place = string.byte(intents, i, i + 3)
    local x = a * 256 + b + 1
    local old = bytes[x]
    if old then
      local was = old % 8
      if was == 0 or was == 4 or (was == 1 and attempt > (old - was) / 8) then
        move(x, old, attempt * 8 + 1)
        paid_later = paid_later + in_place
      end
    end
  end
end
store()
if paid_later > 0 then
  local s = sender_of(sender)
  if s then spend(s, id, num(h[6]), num(h[7]), paid_later) end
end
if #kept > 0 then state = settle_end(id) end
return answer()
