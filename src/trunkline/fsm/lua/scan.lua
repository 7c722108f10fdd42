-- Cursor, pattern, whether to return the data: the next cursor, and the records of this page.
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 500)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = {}
for _, key in ipairs(page[2]) do
    local ttl = redis.call('PTTL', key)
    if ttl ~= -2 then
        local fields, ends = {}, ''
        if ARGV[3] == '1' then
            fields = redis.call('HGETALL', key)
        else
            for _, name in ipairs({'flow', 'state'}) do
                local value = redis.call('HGET', key, name)
                if value then
                    fields[#fields + 1] = name
                    fields[#fields + 1] = value
                end
            end
        end
        if ttl >= 0 then ends = string.format('%.0f', now + ttl) end
        found[#found + 1] = {key, fields, ends}
    end
end
return {page[1], found}
